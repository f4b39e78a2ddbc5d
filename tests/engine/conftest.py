"""Puts this folder on the path of imports, so that the tests in folders below find its helpers."""
