"""Trials of a base on a tiny random copy: what works is measured against transformers and PEFT"""
