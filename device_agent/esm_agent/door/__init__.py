"""Access control: certificates, tokens, and the interceptor that checks them."""
