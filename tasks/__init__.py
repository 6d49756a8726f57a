"""The stages, and what runs them. Plain Python: no Prefect, no disk layout."""
