"""Measurements of speed, memory and traffic; not installed.

A regular package, because fairscale installs a package of the same name, which would be found first.
"""
