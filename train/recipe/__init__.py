"""How the shipped backbone was made: python -m grmp_edge.train.recipe"""
