"""How bytes cross: channel, encoding, weights, the directory that jobs share, the thread that moves them, their count.

May import the method's words (config, groups, loss, topk, errors), never the ways of exchanging above it.
"""
