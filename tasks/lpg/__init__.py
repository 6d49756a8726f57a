"""LPG: a mask generator learnt by stage-wise EM on an auxiliary set, deployed on classes that it never saw."""
