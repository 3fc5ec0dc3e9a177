"""`pyskip calibrate`: text -> sums (native gather) -> fits -> operating points -> profile. Data flows in this order:

text.py samples text from the model if none is given, gather.py runs the model over it, fit.py solves for stand-ins
and gates, distill.py trains them end to end if asked, curve.py finds and measures the operating points, write.py
writes the profile, and calibrate.py leads through all of it. depth.py finds sets for the policy static instead.
"""
