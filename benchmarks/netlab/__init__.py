"""A network lab on one machine: hosts as network namespaces, joined by links as slow as a user's."""
