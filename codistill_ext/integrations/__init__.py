"""Hosts that users already have: Hugging Face's Trainer and Accelerate, Lightning Fabric. Each is an extra.

Modules here may import the core, ``job/`` and their own host; nothing of the core imports them.
"""
