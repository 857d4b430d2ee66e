"Settings of a training that takes a second."

SHORT = {
    "training.train_sessions": 120,
    "training.valid_sessions": 30,
    "training.test_sessions": 60,
    "training.rounds": 5,
    "training.min_data_in_leaf": 20,
    "training.threads": 1,
    "portfolio.top_n": 3,
    "portfolio.bottom_n": 3,
}
