"""The embedded default: drawn recordings with annotations, and a tiny backbone that can read them.

Nothing here stands for real newborns or for what the 7B model can do. It exists so that the whole
way, from videos to a tested head, runs on any machine without a download.
"""
