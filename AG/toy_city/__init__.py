"""The toy city: a procedural data set for place recognition in the layout and naming of SF-XS.

    DIR/train, DIR/val/{database,queries}, DIR/test/{database,queries_v1}, DIR/city.json

Cameras walk straight streets of procedural houses. Every picture has its own hour, weather, camera
and passers-by. Training cameras stand in cells 10 m wide, 50 m apart, and look in bins of 30° that
lie 60° apart, so that all classes fall into one group of CosPlace's default grid (M = 10, alpha =
30, N = 5, L = 2). Everything is a function of the seed, whatever the number of workers.
"""
