"""(fairseq) Tasks, imported by ``--user-dir``."""
