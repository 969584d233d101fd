"""The command `mindrepvgg`: a module for each verb, and the options they share."""
