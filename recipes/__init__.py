"""Recipes: what reproduces tables and figures, and what runs and reads them. Used from the checkout."""
