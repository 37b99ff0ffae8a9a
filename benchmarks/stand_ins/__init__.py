"""Real gRPC servers of the KServe v2 protocol that stand for somebody else's, honest or faulty on command."""
