"""What happens over a stream: new tasks and known ones, growth, forgetting on request."""
