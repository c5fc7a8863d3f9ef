"""The page on which a person corrects predictions beside the video, and the small server behind it.

The page is our own, of one HTML, one style sheet and three programs; the server is Bottle on the standard library's
threads. What was decided lies in the project's `reviewed/` (`featurecache.annotations.reviews`), written at once.
"""
