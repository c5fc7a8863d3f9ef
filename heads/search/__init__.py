"""The search: an Optuna study over inputs and head settings, and what it says in the end."""
