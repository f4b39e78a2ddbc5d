"""One model over several hosts: who is in the group, and how followers repeat what the leader dispatches."""
