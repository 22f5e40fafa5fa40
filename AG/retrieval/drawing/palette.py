"""The colours and the signs of right and wrong, which differ in both.

The colours are ones that colour-blind people tell apart (Okabe and Ito).
"""

RIGHT, WRONG, NEUTRAL = "#0072B2", "#D55E00", "#666666"  # blue, orange, grey

# For each mark of a prediction: `none` where there are no labels.
COLOURS = {"right": RIGHT, "wrong": WRONG, "junk": NEUTRAL, "none": NEUTRAL}
SIGNS = {"right": "✓", "wrong": "✗", "junk": "junk", "none": ""}
