// What all clients are asked, and the addresses of the servers that answer.

const { z } = require("zod");

// Answers from a script: a thought and a call of `weather` if it may be called, "Sunny." once the
// call's result is there, else "Hello there, friend".
exports.SCRIPTED = process.env.SCRIPTED_URL;

// Answers from the embedded model; schemas and forced calls are held by grammars.
exports.MODEL = process.env.MODEL_URL;

exports.HI = "Hello!";
exports.ASK = "How is the weather in Rome?";
exports.Weather = z.object({ city: z.enum(["Rome", "Oslo"]) });
exports.Person = z.object({ name: z.enum(["Bob", "Eve"]), age: z.number().int().min(1).max(99) });
exports.parameters = {
  type: "object",
  properties: { city: { enum: ["Rome", "Oslo"] } },
  required: ["city"],
  additionalProperties: false,
};

// More tokens than the embedded model's context has.
exports.TOO_LONG = "hello ".repeat(9000);

// Everything that an asynchronous iterable yields.
exports.all = async (iterable) => {
  const found = [];
  for await (const each of iterable) found.push(each);
  return found;
};
