"""Statistics of scores over seeds, groups and images: one model for interval, p and "clear".

clusters   which images belong together
variance   variance components of seeds × groups × images
kinds      trainings of two kinds
intervals  of a mean and of a difference, bounded where the scores are
pairs      differences of all pairs, adjusted for their number
summary    one column of scores in a few numbers
"""
