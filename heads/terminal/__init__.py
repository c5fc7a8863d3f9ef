"""What commands of `heads` show: documents to rich objects and plain lines. Nothing here prints."""
