"Studies: searches on real data whose outcome is a default or a decision, to be repeated by whoever doubts it."
