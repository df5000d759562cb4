"""Name the mistake in a wrong gradient.    How it works: notebooks/32_checker.ipynb

explain gathers what is found of all the gradients of a check, and ranks it. formulas and mistakes
look at one array alone, variants at the whole backward pass on other operands; program says what
there is in it. The rest walks the program backwards with one local rule replaced: tape records it,
local has the rules, walk goes back, match compares, words says where. What may stand for a rule is
in replacements, slopes, regions, uses, loops, others and, for the forward pass, edits.
"""
