"""Attacks on real peers: what somebody with nothing but public keys, or with a certificate, can do to a mesh.

`ground` starts the mesh and asks it honestly all the while; `strangers` are let in nowhere, `insiders` hold a
certificate of their own and break the protocol with it. None of them reads a peer's memory or files.
"""
