"""How good sampled videos are: against real ones (FVD), against references (PSNR), and to people (a preference study).

`clipmill evaluate --help`; paper, section 4 and appendix E.
"""
