"""Work with tensors on the coordinator's side: small anchors, moments of router inputs, evaluation, generation. Job processes only."""
