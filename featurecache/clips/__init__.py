"""Recordings and annotations -> the clip table: targets, splits, leakage, and the audit of the labels."""
