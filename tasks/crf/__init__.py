"""The dense CRF (Krähenbühl & Koltun 2011) of one image, of many, and as stages."""
