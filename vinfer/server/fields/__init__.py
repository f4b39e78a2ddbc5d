"""What request bodies may contain, per route: which fields are applied, their types and limits."""
