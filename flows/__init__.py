"""The recipes: which stage feeds which, and the ``maskmill`` command. The only importer of Prefect."""
