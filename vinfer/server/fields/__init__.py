"""What request bodies may hold, per route: which fields are applied, their types and limits."""
