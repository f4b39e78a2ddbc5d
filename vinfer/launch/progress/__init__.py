"""How far a build or a load is, how long each phase takes, and how terminals and logs show it."""
