"""What commands of `featurecache` show: documents to rich objects and plain lines. Nothing here prints."""
