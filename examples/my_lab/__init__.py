"""A template for components of your own: data, network, metric, loss and callback; docs/extending.md explains them."""
