"""Workloads of the suite, each as a program and as plain HTTP calls."""
