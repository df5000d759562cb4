-- What a page has and paper has not, after handout.lua: a title apart, captions, links to equations.

local numbers = {}

local function number(element)
  for tag in element.text:gmatch("\\tag%s*{(.-)}") do
    numbers[tag] = true
  end
end

-- The title stands before the contents.
local function title(document)
  document.meta.title = document.blocks:remove(1).content
  return document
end

local function mention(element)
  local before, tag, after = element.text:match("^(.-)%((%d+%.%d+)%)(.*)$")
  if numbers[tag] then
    local inlines = pandoc.Inlines({ pandoc.Str(before), pandoc.Link("(" .. tag .. ")", "#eq-" .. tag) })
    inlines:extend(pandoc.Inlines(mention(pandoc.Str(after)) or pandoc.Str(after)))
    return inlines
  end
end

local function unnested(element)
  element.content = element.content:walk({ Link = function(within) return within.content end })
  return element
end

local function wide(element)
  return pandoc.Div(element, { class = "table-wrapper" })
end

local function figure(element)
  local image = element.content[1]
  if #element.content == 1 and image.t == "Image" then
    return pandoc.Figure(pandoc.Plain(image), { long = { pandoc.Plain(image.caption) } })
  end
end

return {
  { Math = number, Pandoc = title },
  { Str = mention },
  { Link = unnested, Table = wide, Para = figure },
}
