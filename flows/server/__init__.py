"""Flows as Prefect flow runs, and the server that schedules them."""
