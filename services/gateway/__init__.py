"""The gateway: the HTTP that SDKs, ad links and server-to-server senders speak, as records. It owns no state."""
