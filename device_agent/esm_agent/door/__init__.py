"""Who comes in: certificates, tokens, and the interceptor that asks for them."""
