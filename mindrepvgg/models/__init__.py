"""The networks of the RepVGG family: their variants, shapes, forms and costs."""
