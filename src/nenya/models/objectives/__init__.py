"""What a training minimises: each loss a pure function, and the parts that only training needs."""
