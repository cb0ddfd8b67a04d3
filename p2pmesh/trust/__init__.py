"""Who may: keys and what they prove. Pure."""
