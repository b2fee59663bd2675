"""Wrong artifacts made from right ones, each as a real bug would: `verify` must fail every one of them."""
