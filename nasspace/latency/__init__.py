"""Latency of a network on a device: conversion, runtimes, measurement, cache and prediction."""
