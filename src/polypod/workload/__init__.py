"""What a model asks of the chips: its shape, its weights and cache, its operators, and the traffic it serves."""
