raise ValueError("half a \udc80 letter, on import")
