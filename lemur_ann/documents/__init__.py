"""What comes in, and what is kept of it: documents and queries in any form, tokens, ids and rows."""
