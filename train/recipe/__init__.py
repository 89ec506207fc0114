"""How the shipped weights were made: python -m grmp_edge.train.recipe"""
