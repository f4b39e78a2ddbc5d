"""The build half: an EasyDeL module becomes pure programs in a bundle."""
